"""What a study is: its trials, its goal, its front, its files. Pure data: no Ray, Optuna or MLflow."""
