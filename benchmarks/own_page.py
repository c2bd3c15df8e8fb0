"""Page of the bench of own data."""


def write_page(rows):
    pass
