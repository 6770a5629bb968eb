"""One file a schema. What is written here stays as it is for ever: stores of that age are still out there."""
