"""The main job, on real input: a training run that saves to S3, dies, and resumes bit-identically from it.

`command` is what the command line runs, `experiment` arranges processes, `worker` is what each of them does. Who
arranges never imports torch: it starts workers, and compares the reports that they leave.
"""
