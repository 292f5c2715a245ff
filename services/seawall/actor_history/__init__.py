"""What an actor's recent decisions amount to, when no single one of them says it."""
