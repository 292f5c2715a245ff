"""How well prompts are scored: sets of labelled texts, what is measured on them, and how the block grade is fitted."""
