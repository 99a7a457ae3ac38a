# The lab's part of the Makefile: included by ../Makefile.

.PHONY: demo clean

demo:  ## bring up the lab cluster with the example project and prove that it answers (LAB=single: all on one host)
	@lab/demo $(LAB)

clean:  ## remove the labs and everything that was made here
	@lab/clean
