"""The ledger: decisions and dead letters as rows, to be searched. No content; the topics can fill it again."""
