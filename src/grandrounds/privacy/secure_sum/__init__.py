"""Secure aggregation: who adds the sites' updates up learns their sum, and no update.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
figure 4: double masking, with secret sharing against sites that drop out.
"""
