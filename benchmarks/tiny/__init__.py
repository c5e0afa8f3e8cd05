"""How hvkf-tiny was trained and measured."""
