"""What tests share; README.md says which module does what."""
