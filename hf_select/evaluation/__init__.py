"""Compare selections with random rows at equal compute, and advise whether scoring a pool is worth its cost."""
