"""What tests share; a module for each need."""
