"""The aggregator: joins generations with their signals and applies the policy. It alone writes decisions."""
