"""What the networks that mix normalizers have in common."""
