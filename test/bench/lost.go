package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"barque.dev/examples"
	"barque.dev/internal/local"
	"barque.dev/test/report"
)

const (
	lostNamespace = "default"
	lostLabel     = "bench"
	replicas      = 3
)

func measureLost(ctx context.Context, b *bench) (err error) {
	c, err := b.newCluster()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.down()) }()
	if err := c.up(ctx); err != nil {
		return err
	}
	if _, err := c.DeploySample(ctx, quiet); err != nil { // its image is on every machine then
		return err
	}
	for i := range b.times(5, 1) {
		for _, leads := range []bool{false, true} {
			if err := b.lostOnce(ctx, c, leads, fmt.Sprintf("r%d-%v", i, leads)); err != nil {
				return fmt.Errorf("round %d, the leader is lost: %v: %w", i+1, leads, err)
			}
			if err := c.up(ctx); err != nil {
				return fmt.Errorf("heal after round %d: %w", i+1, err)
			}
		}
	}
	return nil
}

func (b *bench) lostOnce(ctx context.Context, c *cluster, leads bool, name string) error {
	leader, err := c.settledLeader(ctx)
	if err != nil {
		return err
	}
	victim := leader
	if !leads {
		victim = c.other(leader)
	}
	client, err := c.survivor(victim)
	if err != nil {
		return err
	}
	if err := createWorkloads(ctx, client, name); err != nil {
		return err
	}
	kinds := []string{"Deployment", "StatefulSet"}
	spread := func(pods []corev1.Pod) bool {
		return len(runningOn(pods)) == replicas && runningOn(pods)[victim.Name] == 1
	}
	for _, kind := range kinds {
		if _, err := waitPods(ctx, client, name, kind, spread); err != nil {
			return fmt.Errorf("a pod of the %s on each node: %w", kind, err)
		}
	}
	struck := time.Now()
	injected := make(chan error, 1)
	go func() { injected <- victim.PowerOff(ctx) }()
	replaced := func(pods []corev1.Pod) bool {
		on, n := runningOn(pods), 0
		for node, count := range on {
			if node != victim.Name {
				n += count
			}
		}
		return n >= replicas
	}
	type result struct {
		at  time.Time
		err error
	}
	results := map[string]chan result{}
	for _, kind := range kinds {
		ch := make(chan result, 1)
		results[kind] = ch
		go func() {
			at, err := waitPods(ctx, client, name, kind, replaced)
			ch <- result{at, err}
		}()
	}
	who := "follower"
	if leads {
		who = "leader"
	}
	for _, kind := range kinds {
		r := <-results[kind]
		if r.err != nil {
			return fmt.Errorf("replacement in the %s: %w", kind, r.err)
		}
		b.say("%s %s lost: the %s's pod runs elsewhere after %v", who, victim.Name, kind, r.at.Sub(struck))
		b.add(report.Figure{Name: kind + ", " + who + " lost", Unit: "s", Aim: "5",
			Includes: "power off of the machine until the replacement is Running on another; its image is there; stock about 350 s"}, r.at.Sub(struck).Seconds())
	}
	return errors.Join(<-injected, deleteWorkloads(ctx, client, name))
}

func (c *cluster) other(m *local.Machine) *local.Machine {
	for i := range c.Machines {
		if o := c.Machines[len(c.Machines)-1-i]; o != m {
			return o
		}
	}
	return m
}

// survivor speaks to a server that is not the victim.
func (c *cluster) survivor(victim *local.Machine) (kubernetes.Interface, error) {
	config, err := c.MachineConfig(c.other(victim))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Timeout = -1, time.Second
	return kubernetes.NewForConfig(config)
}

func createWorkloads(ctx context.Context, client kubernetes.Interface, name string) error {
	count := int32(replicas)
	meta := func(kind string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: "bench-" + name, Labels: map[string]string{lostLabel: name + "-" + kind}}
	}
	selector := func(kind string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{lostLabel: name + "-" + kind}}
	}
	template := func(kind string) corev1.PodTemplateSpec {
		grace := int64(1)
		m := meta(kind)
		m.Name = ""
		return corev1.PodTemplateSpec{ObjectMeta: m, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "hello", Image: examples.HelloV1, ImagePullPolicy: corev1.PullNever}},
		}}
	}
	_, err := client.AppsV1().Deployments(lostNamespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: meta("Deployment"),
		Spec:       appsv1.DeploymentSpec{Replicas: &count, Selector: selector("Deployment"), Template: template("Deployment")},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = client.AppsV1().StatefulSets(lostNamespace).Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: meta("StatefulSet"),
		Spec: appsv1.StatefulSetSpec{Replicas: &count, Selector: selector("StatefulSet"), Template: template("StatefulSet"),
			PodManagementPolicy: appsv1.ParallelPodManagement, ServiceName: "bench-" + name},
	}, metav1.CreateOptions{})
	return err
}

// deleteWorkloads removes them, and waits until their pods on living machines are gone.
func deleteWorkloads(ctx context.Context, client kubernetes.Interface, name string) error {
	foreground := metav1.DeletePropagationForeground
	opts := metav1.DeleteOptions{PropagationPolicy: &foreground}
	err := errors.Join(client.AppsV1().Deployments(lostNamespace).Delete(ctx, "bench-"+name, opts),
		client.AppsV1().StatefulSets(lostNamespace).Delete(ctx, "bench-"+name, opts))
	for _, kind := range []string{"Deployment", "StatefulSet"} {
		_, e := waitPods(ctx, client, name, kind, func(pods []corev1.Pod) bool { return len(runningOn(pods)) == 0 })
		err = errors.Join(err, e)
	}
	return err
}

// runningOn counts the pods that run, by node.
func runningOn(pods []corev1.Pod) map[string]int {
	on := map[string]int{}
	for i := range pods {
		if p := &pods[i]; p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			on[p.Spec.NodeName]++
		}
	}
	return on
}

// waitPods asks every 20 ms until the pods of a workload are as wanted, and returns when that was.
func waitPods(ctx context.Context, client kubernetes.Interface, name, kind string, wanted func([]corev1.Pod) bool) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var last map[string]int
	for {
		pods, err := client.CoreV1().Pods(lostNamespace).List(ctx, metav1.ListOptions{LabelSelector: lostLabel + "=" + name + "-" + kind})
		if err == nil {
			if wanted(pods.Items) {
				return time.Now(), nil
			}
			last = runningOn(pods.Items)
		}
		if e := sleep(ctx, 20*time.Millisecond); e != nil {
			return time.Time{}, fmt.Errorf("pods run on %v: %w", last, errors.Join(e, err))
		}
	}
}
