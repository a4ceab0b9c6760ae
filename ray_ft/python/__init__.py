"""What Python code calls: cross-validation of objects of a process, an estimator of scikit-learn, learning curves."""
