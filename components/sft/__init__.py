"""The supervised fine-tuning stage."""
