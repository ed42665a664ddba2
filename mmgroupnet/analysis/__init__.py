"""Pictures and figures about trained models."""
