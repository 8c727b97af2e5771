"""Networks: the personalised generator, its critic, and what they are made of."""
