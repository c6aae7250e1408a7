// Package upgrade replaces the program of a running machine by another one, and takes the old one back when the new one
// does not do.
//
// A machine's [Upgrader] receives a program, runs it for its version, and refuses one that may not follow ([Allowed]).
// Switched to it, it puts the program in the place of the running one, and the process ends in good order and becomes the new
// program: its process ID stays, and so do containers. Beside it runs a [Guard], a process of the old program. It waits until the
// new one says of itself that it is ready, and stays so for a while. When that does not come to pass in time, it puts the old program back
// and has it run.
//
// What is where, PROGRAM being the file that the machine's process was started from:
//
//	PROGRAM.next            what was received, until it is switched to
//	PROGRAM.previous        what ran before
//	DATA-DIR/upgrade.json   the [Record]
//
// [Order] is in which order the machines of a cluster are switched.
package upgrade
