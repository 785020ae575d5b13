"""What a network costs: bytes, as a packed file whose zeros take next to no room, and multiply-adds."""
