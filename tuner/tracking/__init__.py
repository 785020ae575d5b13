"""Record studies in MLflow. Only this package imports MLflow."""
