"""Who may do what: tokens, their register and keys, the table of roles, and limits per caller."""
