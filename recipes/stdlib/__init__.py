"""ossia-stdlib: text, dialogues and scoring."""
