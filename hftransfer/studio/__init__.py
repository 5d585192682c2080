"""The whole workflow in the browser: data, training, results and labels, by the functions of the command line."""
