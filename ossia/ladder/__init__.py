"""The ladder from GPT-2 to gpt-oss: each architectural step trained and measured."""
