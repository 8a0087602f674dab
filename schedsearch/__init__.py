"""Search schedules that make diffusion models faster, and replay them from a file."""
