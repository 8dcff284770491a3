"""Speed and memory of the layers, beside what a user would pick instead."""
