"""The console: what on-call, reviewers and their tools ask of the ledger, as pages and as JSON. No content, ever."""
