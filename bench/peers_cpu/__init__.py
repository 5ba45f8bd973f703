"""ossia beside its peers on the CPU; `python -m bench.peers_cpu`."""
