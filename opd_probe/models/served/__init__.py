"""Models behind HTTP: a teacher that scores, or a student that samples. Token ids go in, never text.

httpx is imported when a server is asked for something, and not before.
"""
