"""Hash exchanges: lists that others keep, pulled into a bank of their own, and our votes on them.

transport      HTTP with bounds: TLS, sizes, time, Retry-After; no secret in an error
credentials    from a secret file or the environment, nowhere else
records        what every exchange says: pages of records, and what could not be read of them
ncmec, stopncii, meta_threatexchange       one exchange each, over the clients of the `threatexchange` library
pull           an exchange into a bank, resumable; votes back
formats        lists in files: JSON, and python-threatexchange's own state
"""
