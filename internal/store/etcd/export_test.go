package etcd

// OpenLog is openLog.
var OpenLog = openLog
