// Package agenttest tests the agent with a real containerd. Everything it makes is below a temporary
// folder and a control group of its own; a second process cleans up if the tests are killed.
package agenttest
