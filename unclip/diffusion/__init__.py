"""The mathematics of diffusion. It knows no networks, no pictures and no files.

Left out on purpose, since no published weights use them: networks that predict x_{t-1}, and
networks that predict a free log-variance, in place of one between the two bounds.
"""
