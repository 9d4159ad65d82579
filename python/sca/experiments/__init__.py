"""Studies made of many training runs, one package each."""
