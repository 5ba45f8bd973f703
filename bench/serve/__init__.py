"""`ossia serve` under load: how fast it is beside a peer, and whether it stays calm."""
