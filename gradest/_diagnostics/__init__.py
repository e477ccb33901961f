"""Is the gradient right, and how noisy is it?"""
