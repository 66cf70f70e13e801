"""Small real on-policy distillation runs: a synthetic task, base models, a training loop, named recipes.

The lab trains Qwen2-shaped models of about 0.4M parameters on a processor in minutes, writes ordinary Hugging
Face checkpoints, and measures them through the toolkit's public functions as any user would. Importing it
loads neither torch nor transformers; its modules do.
"""
