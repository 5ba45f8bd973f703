"""A GPU measured in a fixed time: inference and training beside their limits and transformers.

A part is what one process measures. A fault of the card ends its process and no other, and a part
that takes too long is stopped, so that one failure costs the rows of one part at most.
"""
