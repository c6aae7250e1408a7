// Package gc deletes what nobody owns any more, and carries out the three ways of deleting an
// owner: in the background (dependents go afterwards), in the foreground (they go first, the
// owner keeps the finalizer foregroundDeletion meanwhile) and with orphans (they stay and
// forget the owner, which keeps the finalizer orphan meanwhile).
//
// It follows every kind in the shared image and keeps a [graph] of who refers to whom, by UID.
// What to do about one object is a pure function of the graph ([graph.decide]); before anything
// is deleted, a missing owner is looked up once more.
package gc
