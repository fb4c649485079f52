"""Generators and proxies behind one door: the embedded ones, Stable Diffusion, any mmsegmentation
model.
"""
