"""ossia-stdlib: the words and dialogues that it learned from, and its scores."""
