"""The stages: each plans its work into parts, runs parts, and commits what they made."""
