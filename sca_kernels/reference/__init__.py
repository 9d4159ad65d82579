"""What every operator computes, in plain PyTorch: what the backends are held against, and what runs where none is."""
