"""What traces say, as rows, tables, figures and pages. No model is touched."""
