"""The benchmarks: reading their official files, grading answers, scores with intervals. Torch-free, and pure but
for reading. Each module is one benchmark and says whose protocol it follows; paper.md, section 5."""
