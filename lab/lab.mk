# The lab's part of the Makefile, which includes it.

.PHONY: demo clean

demo: system-packages-lab venv-controller ## the lab cluster with the example project, proved to answer (LAB=single: on one host)
	@lab/demo $(LAB)

clean: ## remove the labs and everything that was made here
	@lab/clean
