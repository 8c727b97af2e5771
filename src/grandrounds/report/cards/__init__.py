"""A finished run's model card and data sheet are filled from its study and results, without torch.

What only people know is left blank and marked. Mitchell et al. 2019; Gebru et al. 2021.
"""
