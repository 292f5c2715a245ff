"""The demo models: downloaded by package name, verified, converted, quantised and kept as model packs."""
