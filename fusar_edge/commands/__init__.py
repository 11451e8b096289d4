"""The verbs of `fusar-edge`, by who gives them; each is a thin cover of a Python function, imported when it runs."""
