"""Groups of settings, each beside the others of its subject; `hvkf.config` joins them."""
