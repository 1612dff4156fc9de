"""Models, states and inputs that several test files share."""
